"""What inductor makes of an update for a device that need not be there: kernels, bytes moved, source and PTX.

The update is traced on tensors without storage and lowered to source, which neither runs nor needs a card. Written for
the inductor of torch 2.15, whose private parts it calls.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from drpruning.train.optimizers.quantized_moments import QuantizationMap
from drpruning.train.optimizers.update import NUMERICS, Slice, update

H100 = {
    "multi_processor_count": 132,
    "major": 9,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
}
COUNT = 2**24


@dataclass(frozen=True)
class Lowered:
    """Kernels, bytes read and written for each number of a slice, and the source that inductor writes."""

    kernels: int
    bytes_per_number: float
    source: str

    def ptx(self, folder: Path) -> str:
        """Return what Triton compiles the only kernel to for compute capability 9.0."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        found = re.search(r"async_compile\.triton\('(\w+)', '''(.*?)'''", self.source, re.DOTALL)
        assert found is not None
        name, body = found.groups()
        heads = [
            "import triton\nimport triton.language as tl",
            "from torch._inductor.runtime import triton_helpers",
            "from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math\n",
        ]
        path = folder / f"{name}.py"
        path.write_text("\n".join(heads) + body[body.index("@triton.jit") :])
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        types = re.search(r"'signature': (\{.*?\})", body)
        assert types is not None
        fusion = re.search(r"'enable_fp_fusion': (\w+)", body)
        assert fusion is not None
        options = {"enable_fp_fusion": fusion[1] == "True", "num_warps": 4}
        source = ASTSource(
            getattr(module, name), ast.literal_eval(types[1]), constexprs={"XBLOCK": 1024 if "poi" in name else 8}
        )
        return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


def lowered(weights: str, moments: str, device: str) -> Lowered:
    """Lower an update of 2^24 numbers for a weight format and an optimizer state format of ``training``."""
    from torch._inductor import config, metrics
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx

    card = DeviceProperties(type="cuda", index=0, cc=90, **H100)
    with ExitStack() as stack:
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        tensors = tensors_of(weights, moments, device)
        codes = [torch.zeros(count, device=device) for count in (256, 255)] * 2 if moments == "int8" else []
        rest = [torch.zeros(8), torch.zeros(2, dtype=torch.int32), torch.zeros(())]
        arguments = [*tensors.values(), *codes, *(each.to(device) for each in rest)]

        def flat(*values: Tensor) -> tuple[()]:
            state = dict(zip(tensors, values, strict=False))
            weight, gradient = state.pop("weight"), state.pop("gradient")
            of_codes = values[len(tensors) : len(tensors) + len(codes)]
            known = (QuantizationMap(*of_codes[:2]), QuantizationMap(*of_codes[2:])) if codes else None
            numbers, keys, found_inf = values[-3:]
            update(Slice(weight, gradient, state, numbers, keys, found_inf, known))
            return ()

        table = select_decomp_table()
        graph = make_fx(torch.func.functionalize(flat), decomposition_table=table, tracing_mode="fake")(*arguments)
        if device == "cuda":
            for name, value in {
                "torch._inductor.runtime.hints.DeviceProperties.create": lambda device: card,
                "torch.cuda.get_device_properties": lambda *_: SimpleNamespace(**H100, name="H100", minor=0),
                "torch.cuda.get_device_capability": lambda *_: (9, 0),
                "torch.cuda.current_device": lambda: 0,
                "torch.cuda.is_available": lambda: True,
                "torch._inductor.scheduler.has_triton": lambda *_: True,
                "torch.utils._triton.triton_hash_with_backend": lambda: "",
            }.items():
                stack.enter_context(mock.patch(name, value))
        stack.enter_context(config.patch(dict(NUMERICS)))
        lowering = GraphLowering(graph, example_inputs=arguments)
        for context in (V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(DebugContext())):
            stack.enter_context(context)
        lowering.run(*arguments)
        metrics.reset()
        source: Any = lowering.codegen()[0]
        moved = lowering.count_bytes()[0]
    return Lowered(metrics.generated_kernel_count, moved / COUNT, getattr(source, "value", str(source)))


def tensors_of(weights: str, moments: str, device: str) -> dict[str, Tensor]:
    """Zeros of the types of a scheme, as slices are given to the update."""
    shape = (COUNT // 128, 128) if moments == "int8" else (COUNT,)
    weight = torch.zeros(shape, dtype=torch.float32 if weights == "float32" else torch.bfloat16, device=device)
    tensors = {"weight": weight, "gradient": torch.zeros_like(weight)}
    if weights == "bfloat16+low16":
        tensors["low"] = torch.zeros(shape, dtype=torch.int16, device=device)
    for name in ("exp_avg", "exp_avg_sq"):
        kind = {"int8": torch.uint8, "bfloat16": torch.bfloat16, "float32": torch.float32}[moments]
        tensors[name] = torch.zeros(shape, dtype=kind, device=device)
        if moments == "int8":
            tensors[f"{name}_scale"] = torch.zeros(shape[0], 1, device=device)
    return tensors
