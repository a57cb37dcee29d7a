// Tooltips in the language that was chosen, where the front end shows those of the server whatever the language:
// the settings of a dynamic combo, which go by the option that is chosen, text areas, and the table of the help page.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const languages = api
  .fetchApi("/i18n")
  .then((answer) => answer.json())
  .catch(() => ({}));

const inputs = (groups) => Object.entries({ ...groups?.required, ...groups?.optional });

function say(spec, text) {
  if (text && spec[1]) spec[1].tooltip = text;
}

app.registerExtension({
  name: "lethe.locales",
  async beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("Lethe")) return;
    const texts = (await languages)[app.extensionManager.setting.get("Comfy.Locale")]?.nodeDefs?.[nodeData.name];
    if (!texts) return;
    for (const [key, spec] of inputs(nodeData.input)) {
      say(spec, texts.inputs?.[key]?.tooltip);
      for (const [option, settings] of Object.entries(texts.inputs?.[key]?.options ?? {}))
        for (const [name, inner] of inputs(spec[1].options.find((one) => one.key === option)?.inputs))
          say(inner, settings[name]);
    }
    nodeData.output_tooltips = nodeData.output_tooltips?.map((text, index) => texts.outputs?.[index]?.tooltip ?? text);
  },
});
