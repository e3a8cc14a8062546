"""ORT format: an ONNX model as ONNX Runtime has optimised it, for builds without the ONNX parser."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekd.artifacts import atomic_files
from edgekd.errors import StageError
from edgekd.export.log import quiet


def to_ort(source: Path, path: Path) -> tuple[Path, Path]:
    """Write `path` (.ort) and, beside it, `<stem>.required_operators_and_types.config`.

    The latter is for `--include_ops_by_config` of ONNX Runtime's build: one with these operators and
    types only. Optimised for any CPU: without the layouts of x86 alone.
    Raises StageError when ONNX Runtime cannot convert it.
    """
    from onnxruntime.tools import convert_onnx_models_to_ort as tool

    config = f"{path.stem}.required_operators_and_types.config"
    with atomic_files(path.parent, (path.name, config)) as folder, quiet() as captured:
        for part in (source, source.with_name(f"{source.name}.data")):
            if part.is_file():
                shutil.copyfile(part, folder / part.name)
        try:
            tool.convert_onnx_models_to_ort(
                folder / source.name,
                optimization_styles=[tool.OptimizationStyle.Fixed],
                target_platform="arm",
                enable_type_reduction=True,
            )
        except Exception as error:
            lines = str(error).strip().splitlines() or captured.getvalue().splitlines() or [""]
            raise StageError(
                f"cannot be converted to ORT format: {lines[-1][:300]}", where=str(source)
            ) from None
        made = (folder / source.name).with_suffix(".ort")
        made.replace(folder / path.name)
        made.with_suffix(".required_operators_and_types.config").replace(folder / config)
    return path, path.with_name(config)
