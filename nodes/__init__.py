"""What the host sees: one file per node or pair of nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io


class LetheExtension(ComfyExtension):
    """The pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .attack import LetheAttack
        from .attention import LetheAttention
        from .compare import LetheCompare
        from .concepts import LetheConcept, LetheConceptList, LethePreserve
        from .demo import LetheDemoModel
        from .erase import LetheApply, LetheErase
        from .evaluate import LetheEvaluate
        from .exchange import LetheImport, LetheInspect, LetheToLora
        from .files import LetheLoad, LetheSave
        from .guard import LetheGuard
        from .learn_word import LetheLearnWord
        from .look import LetheLook
        from .report import LetheReport
        from .stack import LetheEach, LetheMerge, LetheStack
        from .train import LetheTrain

        return [
            LetheDemoModel,
            LetheConcept,
            LetheConceptList,
            LethePreserve,
            LetheErase,
            LetheTrain,
            LetheLearnWord,
            LetheGuard,
            LetheAttention,
            LetheLook,
            LetheApply,
            LetheEach,
            LetheStack,
            LetheMerge,
            LetheSave,
            LetheLoad,
            LetheImport,
            LetheToLora,
            LetheInspect,
            LetheCompare,
            LetheEvaluate,
            LetheAttack,
            LetheReport,
        ]
