"""The kernels of the fused backend: they agree with the reference, and fit into a GPU's registers; without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import catalogue
import pytest
import torch

import falseneg as fn
from falseneg.statistics import fused

HERE = Path(__file__).parent
SHARED_KIB = {80: 163, 90: 227}


@pytest.mark.parametrize("where", ["interpreter", "gpu"])
def test_the_kernels_agree_with_the_reference(where):
    pytest.importorskip("triton", reason="there is no Triton for this system")
    if where == "gpu" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    # In a process of its own: Triton must be told before it is imported, and another test may have done that.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if where == "interpreter":
        environment["TRITON_INTERPRET"] = "1"
        # The interpreter multiplies by NumPy, and OpenBLAS's products for Haswell and Zen round x yᵀ and y xᵀ differently. Its
        # oldest ones do not, nor does a GPU.
        environment["OPENBLAS_CORETYPE"] = "Nehalem"
    command = [sys.executable, "-m", "pytest", str(HERE / "fused_kernels_agree.py"), "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


@pytest.mark.parametrize(
    "rows,dims,dtype,rule,capability",
    [
        (70, 20, torch.float32, "none", 90),
        (64, 128, torch.float32, "above", 80),
        (64, 512, torch.float32, "groups", 90),
        (64, 100, torch.bfloat16, "above", 90),
        (1, 128, torch.bfloat16, "groups", 80),
        (64, 600, torch.bfloat16, "none", 80),
    ],
)
def test_the_kernels_compile_for_a_gpu_and_fit_into_it(rows, dims, dtype, rule, capability, tmp_path, monkeypatch):
    for compiled in launched(rows, dims, dtype, rule, capability, tmp_path, monkeypatch):
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        tool = Path(sys.modules["triton"].__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True)
        stack = int(re.search(r"STACK:(\d+)", usage.stdout)[1])
        assert stack <= 32, "what finds no register is kept in memory"
        assert compiled.metadata.shared <= SHARED_KIB[capability] * 1024
        assert "tf32" not in compiled.asm["ptx"]


def launched(rows, dims, dtype, rule, capability, folder, monkeypatch):
    """What a batch and a bank need, totals and gradients, compiled as they would be launched on a GPU that is not there."""
    pytest.importorskip("triton", reason="there is no Triton for this system")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from falseneg.statistics import fused_kernels

    class Absent:
        """A GPU; its number is its capability, as Triton keeps what it has compiled by number."""

        def get_current_device(self):
            return capability

        def get_current_stream(self, device=None):
            return 0

        def get_current_target(self):
            return GPUTarget("cuda", capability, 32)

    class Compiled:
        """A kernel that is compiled in the place of being launched."""

        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *given, **options: kernels.append(self.kernel.warmup(*given, grid=grid, **options))

    kernels = []
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    monkeypatch.setattr(driver, "_active", Absent())
    for name in ("totals", "gradients"):
        monkeypatch.setattr(fused_kernels, name, Compiled(getattr(fused_kernels, name)))
    flags = {
        "none": fn.NoPairs(),
        "above": fn.AboveThreshold(torch.tensor(0.5)),
        "groups": fn.SameGroup(torch.ones(rows, 2, dtype=torch.int64), torch.ones(rows, 2, dtype=torch.int64)),
    }[rule]
    z = torch.ones(rows, dims, dtype=dtype, requires_grad=True)
    anchors = fn.Embedded(z, torch.arange(rows))
    for candidates in (anchors, fn.Embedded(z, torch.arange(rows))):  # in a batch, and against other rows
        contrast = fn.Contrast("views", anchors, candidates, z[:, :1])
        totals = fused.FusedSweep(contrast, torch.tensor(0.1), fn.ELIMINATE).totals([flags], 1.0, True)
        totals[0].sum().backward()
    assert len(kernels) == 5
    return kernels


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs anywhere")
def test_where_the_kernels_do_not_run_they_are_refused_and_auto_does_without(monkeypatch):
    contrast, _ = catalogue.contrast_of("batch", dtype=torch.float32)
    seen = contrast, torch.tensor(0.2), fn.NoPairs(), fn.IGNORE
    with pytest.raises(
        fn.UserError, match="backend is 'fused' for embeddings on cpu; it needs Triton and an NVIDIA GPU"
    ):
        fn.negative_stats(*seen, backend="fused")
    monkeypatch.setattr("falseneg.statistics.negatives.AUTO_MAY_FUSE", True)
    monkeypatch.setattr("falseneg.statistics.negatives.DENSE_PAIRS", 1)
    assert type(fn.negative_stats(*seen).sweep).__name__ == "TiledSweep"
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert not fused.runs_on(torch.device("cuda"))


def test_triton_is_imported_only_when_it_is_asked_for():
    script = (
        "import sys, falseneg, falseneg.statistics.fused; print('falseneg.statistics.fused_kernels' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"
