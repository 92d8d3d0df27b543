"""Modules through ``torch.compile``: one compiled call a warmed shape, none for a recipe.

The weights that a recipe changes are inputs of the compiled code, always the same tensors, so no
adapter of whatever rank, reach or kind compiles anything. A shape that was not warmed runs
eagerly: a request never waits for a compilation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch

from serving.engine.options import AttentionBackend, EngineOptions

_STANCE = Lock()

Stance = Literal["default", "eager_on_recompile", "force_eager", "fail_on_recompile"]


def keep_artifacts(folder: Path) -> None:
    """What this process compiles is kept in ``folder``, and taken from there.

    Set whatever the variable was before: torch puts its own default there when it is imported.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # what lies in it is executed
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


class CompiledModule:
    """Callable as the module is.

    ``fallbacks`` counts pieces that ran eagerly although they had been compiled for that key:
    a guard failed, for example because somebody changed torch's number of threads.
    """

    def __init__(self, module: Any, options: EngineOptions) -> None:
        how_to: dict[str, Any] = {
            "fullgraph": True, "dynamic": False,
            "backend": _counting(
                options.compile_backend, options.compile_options, options.attention
            ),
        }  # fmt: skip
        if options.compile == "regional":
            for block in module.modules():
                if type(block).__name__ in options.compile_blocks:
                    block.compile(**how_to)
            self._call = module
        else:
            self._call = torch.compile(module, **how_to)
        self._pieces: dict[object, int] = {}
        self._frozen: Stance = "eager_on_recompile"
        self.fallbacks = 0

    def __contains__(self, key: object) -> bool:
        """Whether calls of this key have been compiled."""
        return key in self._pieces

    def compile(self, key: object, *inputs: Any, **named: Any) -> Any:
        """Run and compile what this key needs. Raises whatever the compiler raises."""
        with _STANCE:
            return self._counted("default", key, inputs, named)

    def __call__(self, key: object, *inputs: Any, **named: Any) -> Any:
        """Compiled where ``key`` was, else eagerly."""
        with _STANCE:
            if key not in self._pieces:
                with torch.compiler.set_stance("force_eager"):
                    return self._call(*inputs, **named)
            expected = self._pieces[key]
            result = self._counted(self._frozen, key, inputs, named)
            self.fallbacks += self._pieces[key] < expected
            self._pieces[key] = expected
            return result

    def _counted(self, stance: Stance, key: object, inputs: Any, named: Any) -> Any:
        """The stance and the counter are the process's: engines that share one take turns."""
        before = _ran[0]
        # Here and not once for all: from torch 2.13 on these limits are a thread's.
        with _without_limits(), torch.compiler.set_stance(stance):
            result = self._call(*inputs, **named)
        self._pieces[key] = _ran[0] - before
        return result

    def forbid_fallbacks(self) -> None:
        """From now on a guard that fails is an error. For tests and benchmarks."""
        self._frozen = "fail_on_recompile"


@contextmanager
def eagerly() -> Iterator[None]:
    """Within it nothing is compiled, and nothing that is compiled is used."""
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield


def _without_limits() -> Any:
    """PyTorch stops at 8 compiled calls of one piece of code; a warmed size of SDXL has 34 of
    its ResNet blocks alone."""
    import torch._dynamo as dynamo

    config: Any = dynamo.config
    return config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16)


#: How many compiled pieces this process has run.
_ran = [0]


@cache
def _counting(
    backend: str,
    options: tuple[tuple[str, bool | int | str], ...],
    attention: tuple[AttentionBackend, ...],
) -> Any:
    """One object for each backend and order of ``attention``: Dynamo compiles again for another
    object, but not for another order, which compiled code keeps."""
    compiler: Any
    if backend == "inductor":
        from torch._inductor.compile_fx import compile_fx

        compiler = partial(compile_fx, config_patches=dict(options) or None)
    else:
        from torch._dynamo.backends.registry import lookup_backend

        compiler = lookup_backend(backend)

    def compile_counted(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled = compiler(graph, inputs)

        def run(*arguments: Any) -> Any:
            _ran[0] += 1
            return compiled(*arguments)

        return run

    return compile_counted


def compilations() -> Mapping[str, int]:
    """Of this process so far: graphs traced, and how many of them were compiled rather than
    taken from the folder of :func:`keep_artifacts`."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "taken": inductor["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
        "compiled": inductor["fxgraph_cache_miss"],
    }
