"""The runtimes a user could pick instead: a torch module through each of them, on the CPU, float32.

    runtime = rivals.RUNTIMES["ncnn"]
    runtime.missing()                                       # why it is not here, or None
    runtime.export(module, inputs, folder)                  # once; 10 s to 1 min, and chatty
    run = runtime.load(folder, threads)                     # in any process; no torch weights
    out = run(*inputs)

``RUNTIMES`` all work so. `compiled` is torch.compile, which keeps the module itself. Sizes are
fixed at export, which favours the runtime. A sample alone: batch 1.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[..., Tensor]
ONNX_OPSET = 18
ONNX_FILE = "model.onnx"
NCNN_FOLDER = "ncnn"
NCNN_FILES = ("model.ncnn.param", "model.ncnn.bin")


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    packages: what must be installed.
    export: (module, inputs, folder): write the module for inputs of these sizes.
    load: (folder, threads): what takes the inputs and gives the output.
    """

    packages: tuple[str, ...]
    export: Callable[[nn.Module, tuple[Tensor, ...], Path], None]
    load: Callable[[Path, int], Run]

    def missing(self) -> str | None:
        """Why it cannot be used here."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None


def _export_onnx(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> None:
    file = folder / ONNX_FILE
    if file.exists():  # ONNX Runtime and OpenVINO read the same one
        return
    names = [f"in{i}" for i in range(len(inputs))]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated; the other needs more
        torch.onnx.export(
            module,
            inputs,
            str(file),
            input_names=names,
            output_names=["out0"],
            opset_version=ONNX_OPSET,
            dynamo=False,
        )


def _load_onnxruntime(folder: Path, threads: int) -> Run:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"]
    )

    def run(*inputs: Tensor) -> Tensor:
        named = {f"in{i}": x.numpy() for i, x in enumerate(inputs)}
        return torch.from_numpy(session.run(None, named)[0])

    return run


def _load_openvino(folder: Path, threads: int) -> Run:
    openvino: Any = importlib.import_module("openvino")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(folder / ONNX_FILE), "CPU", settings)

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(compiled([x.numpy() for x in inputs])[0])

    return run


def _export_ncnn(module: nn.Module, inputs: tuple[Tensor, ...], folder: Path) -> None:
    pnnx: Any = importlib.import_module("pnnx")
    folder = folder / NCNN_FOLDER
    if folder.exists():
        return
    folder.mkdir()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # it traces the module
        pnnx.export(module, str(folder / "model.pt"), inputs, fp16=False)
    if not all((folder / name).exists() for name in NCNN_FILES):
        raise RuntimeError(f"pnnx wrote no ncnn model to {folder}")
    for file in folder.iterdir():  # of a gigabyte three quarters are intermediate
        if file.name not in NCNN_FILES:
            file.unlink()


def _load_ncnn(folder: Path, threads: int) -> Run:
    ncnn: Any = importlib.import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = threads
    # float32 throughout: otherwise some processors keep maps and weights in 16 bits
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    param, model = (str(folder / NCNN_FOLDER / name) for name in NCNN_FILES)
    if net.load_param(param) or net.load_model(model):
        raise RuntimeError(f"ncnn cannot read {param}")

    def run(*inputs: Tensor) -> Tensor:
        extractor = net.create_extractor()
        for i, x in enumerate(inputs):
            # a copy, because ncnn reads whole vectors, beyond the end of a foreign array
            extractor.input(f"in{i}", ncnn.Mat(x[0].numpy()).clone())
        status, out = extractor.extract("out0")
        if status:
            raise RuntimeError(f"ncnn: extract gave {status}")
        result = torch.tensor(out.numpy())[None]
        del out, extractor  # in this order: the extractor owns the memory
        return result

    return run


RUNTIMES = {
    "onnxruntime": Runtime(("onnx", "onnxruntime"), _export_onnx, _load_onnxruntime),
    "openvino": Runtime(("onnx", "openvino"), _export_onnx, _load_openvino),
    "ncnn": Runtime(("ncnn", "pnnx"), _export_ncnn, _load_ncnn),
}


def compiled(module: nn.Module) -> Run:
    """torch.compile with the weights frozen into the graph: its fastest form for inference."""
    inductor: Any = importlib.import_module("torch._inductor.config")
    inductor.freezing = True
    module = module.eval().requires_grad_(False)
    run: Run = torch.no_grad()(torch.compile(module, dynamic=False))
    return run
