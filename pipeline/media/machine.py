"""What of a machine the last bits of floats depend on: for locks and reports, never for a key.

What runs the encoders says more of itself in every sample's device (see `encoders.device_name`);
this is what can be said without loading torch.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

# of the instruction sets that a CPU names, those that decide which of its code a library runs
SETS = re.compile(r"sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|bf16|neon")
# what a person may set so that libraries run other code than the CPU allows
RESTRICTING = (
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
)


def cpu() -> dict[str, str]:
    """`vendor` and `model` of the CPU, and `instructions`: the sets it has that matter, sorted,
    with blanks between them. What is not known is "".
    """
    facts = _cpuinfo(Path("/proc/cpuinfo"))
    sets = facts.get("flags") or facts.get("Features") or ""
    return {
        "vendor": facts.get("vendor_id") or facts.get("CPU implementer") or "",
        "model": facts.get("model name") or _sysctl("machdep.cpu.brand_string"),
        "instructions": " ".join(sorted(filter(SETS.fullmatch, sets.split()))),
    }


def _cpuinfo(path: Path) -> dict[str, str]:
    """What Linux says of the first CPU."""
    try:
        first = path.read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _sysctl(name: str) -> str:
    """What macOS says."""
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", "-n", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def restrictions() -> dict[str, str]:
    """Variables of the environment that hold libraries back from a CPU's instructions."""
    return {name: os.environ[name] for name in RESTRICTING if name in os.environ}


def driver(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of NVIDIA's kernel module, "" where it does not say."""
    try:
        version = re.search(r"\s(\d+(?:\.\d+)+)\s", path.read_text("utf-8", "replace"))
    except OSError:
        return ""
    return version[1] if version else ""
