// Feeds the image-compare widget of "Before / After", which the front end fills by itself only for its own node.
import { app } from "/scripts/app.js";
import { api } from "/scripts/api.js";

const url = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

app.registerExtension({
  name: "lethe.compare",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "LetheCompare") return;
    const previous = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      previous?.apply(this, arguments);
      const widget = this.widgets?.find((candidate) => candidate.type === "imagecompare");
      if (!widget || !output?.a_images) return;
      // Of the shown pictures the server is told nothing, or every run would seem to be another one.
      widget.serializeValue = () => ["", ""];
      widget.value = { beforeImages: output.a_images.map(url), afterImages: output.b_images.map(url) };
    };
  },
});
