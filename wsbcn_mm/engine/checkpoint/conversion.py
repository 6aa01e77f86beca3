"""Convert another project's checkpoint file to the model of a recipe."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ...surgery.checkpoint_import import SOURCES, import_checkpoint, without_time
from ...surgery.fingerprint import fingerprint
from ..files import sha256
from .plain_state import to_plain
from .reading import read_checkpoint
from .writing import refuse_existing, write_checkpoint


def convert_file(
    file: str | Path,
    out: str | Path,
    cfg: Config,
    *,
    part: str = 'backbone',
    source: str | None = None,
    allow_mismatch: bool = False,
    trust: bool = False,
) -> str:
    """Convert another project's checkpoint to one for the model of a recipe.

    Args:
        file: Checkpoint to read.
        out: Checkpoint to write.
        cfg: Recipe whose model is built without loading pretrained weights.
        part: 'backbone', with the keys that its init_cfg loads, or the whole 'model'.
        source, allow_mismatch: See `import_checkpoint`.
        trust: See `read_checkpoint`. If `file` was written by this package, its weights and plain meta are copied.

    Returns:
        A report: entries by stage, and all that were not matched.

    Raises:
        FileNotFoundError: If `file` does not exist.
        FileExistsError: If `out` already exists.
        ValueError: As in `read_checkpoint` and `import_checkpoint`, and for a file that needs no conversion.
    """
    refuse_existing(out)
    read = read_checkpoint(file, trust=trust)
    if 'fingerprint' in read.meta:
        if not trust:
            raise ValueError(f'{file} already records the norm and WS of its layers: it needs no conversion')
        left_out: list[str] = []
        write_checkpoint(out, read.state, to_plain(read.meta, 'meta', left_out))
        return f'{file} -> {out}: {len(read.state)} entries unchanged; left out: {", ".join(left_out) or "nothing"}'
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = MODELS.build(cfg.model)
    model = model.backbone if part == 'backbone' else model
    ours = model.state_dict()
    flat = any(t.ndim == 5 for t in ours.values()) and not any(t.ndim == 5 for t in read.state.values())
    imported = import_checkpoint(
        read.state,
        without_time(ours) if flat else ours,
        fingerprint(model),
        source=source,
        allow_mismatch=allow_mismatch,
    )
    found = imported.match
    meta = dict(
        fingerprint=imported.fingerprint,
        imported=dict(
            source=imported.source,
            variant=SOURCES[imported.source].variant,
            file=Path(file).name,
            sha256=sha256(file),
            coverage={stage: dict(counts) for stage, counts in found.table.items()},
        ),
    )
    write_checkpoint(out, found.state, meta)
    lines = [
        f'{file}: {SOURCES[imported.source].title} ({imported.comparison.theirs}) -> {imported.comparison.ours}',
        *(f'accepted mismatch: {line}' for line in imported.comparison.differences),
        *([f'other entries, not converted: {", ".join(read.ignored)}'] if read.ignored else []),
        found.describe(),
        *(["2D weights: start from them with init_cfg type 'Inflated2d'"] if flat else []),
        f'-> {out}: {len(found.state)} entries, {100 * found.backbone_coverage():.0f} % of the backbone',
    ]
    return '\n'.join(lines)
