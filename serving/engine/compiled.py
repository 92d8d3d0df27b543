"""The UNet through ``torch.compile``: one graph a warmed shape, none for a recipe.

The weights that a recipe changes are inputs of the graph, always the same tensors, so no
adapter of whatever rank, reach or kind makes it compile again. A shape that was not warmed
runs eagerly instead of holding a request up with a compilation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch

Compile = Literal["off", "regional", "full"]
#: Graphs one piece of code may have: shapes warmed × widths of the transformer blocks.
_MAX_GRAPHS = 128
_STANCE = Lock()


def keep_artifacts(folder: Path) -> None:
    """What is compiled in this process is kept in ``folder``, and taken from there.

    Whatever the variable was: torch fills in its own default as soon as it is imported whole.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


class CompiledUnet:
    """Callable as the module is. ``regional`` compiles the transformer blocks, which takes
    seconds and is most of the work; ``full`` the whole, which takes minutes."""

    def __init__(self, unet: Any, how: Compile, backend: str = "inductor") -> None:
        import torch._dynamo as dynamo

        config: Any = dynamo.config
        config.recompile_limit = max(_MAX_GRAPHS, config.recompile_limit)
        config.accumulated_recompile_limit = max(_MAX_GRAPHS, config.accumulated_recompile_limit)
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
        if how == "regional":
            unet.compile_repeated_blocks(**options)
            self._call = unet
        else:
            self._call = torch.compile(unet, **options)
        self._stance = "default"

    def freeze(self) -> None:
        """Everything to be compiled is: from now on what is new runs eagerly."""
        self._stance = "eager_on_recompile"

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        # The stance is the process's: engines that share one take turns.
        with _STANCE, torch.compiler.set_stance(self._stance):
            return self._call(*inputs, **named)


def compilations() -> Mapping[str, int]:
    """Of this process so far: graphs traced, and how many of them were compiled anew rather
    than taken from the folder of :func:`keep_artifacts`."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "taken": inductor["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
        "compiled": inductor["fxgraph_cache_miss"],
    }
