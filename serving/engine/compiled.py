"""Modules compiled by ``torch.compile``: once for each warmed shape, never for a recipe.

Weights that recipes change are inputs. Shapes that were not warmed run eagerly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """Cache compiled code in ``folder``, overriding the default that torch sets at import."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # its contents are executed
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


class CompiledModule:
    """A compiled module; calls take a key first.

    ``fallbacks`` counts calls with a failed guard, e.g. after torch's number of threads changed.
    """

    def __init__(self, module: torch.nn.Module, options: EngineOptions) -> None:
        settings: dict[str, Any] = {
            "fullgraph": True, "dynamic": False,
            "backend": _counting(
                options.compile_backend, options.compile_options, options.attention
            ),
        }  # fmt: skip
        if options.compile == "regional":
            for block in module.modules():
                if type(block).__name__ in options.compile_blocks:
                    block.compile(**settings)
            self._call: Callable[..., Any] = module
        else:
            self._call = torch.compile(module, **settings)
        self._pieces: dict[object, int] = {}
        self._frozen: Stance = "eager_on_recompile"
        self.fallbacks = 0

    def __contains__(self, key: object) -> bool:
        return key in self._pieces

    def compile(self, key: object, *inputs: object, **named: object) -> Any:
        """Run, compiling what ``key`` lacks. Compiler errors propagate."""
        with _STANCE:
            return self._run_counted("default", key, inputs, named)

    def __call__(self, key: object, *inputs: object, **named: object) -> Any:
        with _STANCE:
            if key not in self._pieces:
                with torch.compiler.set_stance("force_eager"):
                    return self._call(*inputs, **named)
            expected = self._pieces[key]
            result = self._run_counted(self._frozen, key, inputs, named)
            self.fallbacks += self._pieces[key] < expected
            self._pieces[key] = expected
            return result

    def _run_counted(
        self, stance: Stance, key: object, inputs: Iterable[object], named: Mapping[str, object]
    ) -> Any:
        """The caller holds ``_STANCE``: stance and counter are process-wide."""
        before = _ran[0]
        # Per call: from torch 2.13 on the limits are per thread.
        with _without_limits(), torch.compiler.set_stance(stance):
            result = self._call(*inputs, **named)
        self._pieces[key] = _ran[0] - before
        return result

    def forbid_fallbacks(self) -> None:
        """Make failed guards errors."""
        self._frozen = "fail_on_recompile"


@contextmanager
def eagerly() -> Iterator[None]:
    """Neither compile nor run compiled code."""
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield


def _without_limits() -> Any:
    """Raise PyTorch's limit of 8 variants per code object: one size needs 34 for ResNet blocks."""
    import torch._dynamo as dynamo

    config: Any = dynamo.config
    return config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16)


#: Compiled pieces run by this process.
_ran = [0]


@cache
def _counting(
    backend: str,
    options: tuple[tuple[str, bool | int | str], ...],
    attention: tuple[AttentionBackend, ...],
) -> Any:
    """Return a compile backend that counts its runs.

    Cached: Dynamo recompiles for another object, not for another ``attention`` order.
    """
    compiler: Any
    if backend == "inductor":
        from torch._inductor.compile_fx import compile_fx

        compiler = partial(compile_fx, config_patches=dict(options) or None)
    else:
        from torch._dynamo.backends.registry import lookup_backend

        compiler = lookup_backend(backend)

    def compile_counted(graph: object, inputs: object) -> Callable[..., Any]:
        compiled = compiler(graph, inputs)

        def run(*arguments: object) -> Any:
            _ran[0] += 1
            return compiled(*arguments)

        return run

    return compile_counted


def compilations() -> Mapping[str, int]:
    """Return the process's counts: ``graphs`` traced, ``compiled``, and ``taken`` from the
    cache."""
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "taken": inductor["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"],
        "compiled": inductor["fxgraph_cache_miss"],
    }
