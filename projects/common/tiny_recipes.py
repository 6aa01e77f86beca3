"""The recipes for the toy data, in `configs/tiny/`."""

from pathlib import Path

RECIPES = Path(__file__).parents[2] / 'configs' / 'tiny'
MODELS = {'segmentation': 'deeplabv3_r18-tiny', 'video': 'r3d-18-tiny'}


def find_recipe(task: str, norm: str, setting: str) -> Path:
    """Return the tiny recipe of a task, norm and setting.

    Args:
        task: 'segmentation' or 'video'.
        norm: Such as 'bcn-ws'.
        setting: Devices, samples per device and accumulation, such as '1xb1-acc16'.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    found = sorted(RECIPES.glob(f'{MODELS[task]}_{norm}_{setting}-*.py'))
    if not found:
        raise FileNotFoundError(f'no recipe {MODELS[task]}_{norm}_{setting}-*.py in {RECIPES}')
    return found[0]
