"""Is what is installed what the recipes need?

    python -m wsbcn_mm.engine.environment

imports everything and says in one line what is wrong.
"""

import sys
from collections.abc import Iterable
from importlib import import_module, metadata

FORKS = {
    'mmengine': 'onedl-mmengine',
    'mmengine-lite': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmcv-lite': 'onedl-mmcv',
    'mmcv-full': 'onedl-mmcv',
    'mmsegmentation': 'onedl-mmsegmentation',
}
"""OpenMMLab's own distributions and the maintained continuations that install into the same folders."""

MODULES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'decord')


def installed_distributions() -> set[str]:
    """Names of the installed distributions, normalised."""
    return {name.lower().replace('_', '-') for d in metadata.distributions() if (name := d.metadata['Name'])}


def stock_packages_message(installed: Iterable[str]) -> str | None:
    """What to do about stock OpenMMLab packages among `installed`; None if there are none."""
    stock = sorted(set(FORKS) & set(installed))
    if not stock:
        return None
    forks = sorted({FORKS[name] for name in FORKS})
    return (
        f'stock OpenMMLab packages are installed ({", ".join(stock)}). They own the same folders as their maintained '
        f'continuations ({", ".join(forks)}), and uninstalling one breaks the other. Use a fresh environment, or run\n'
        f'    pip uninstall -y {" ".join(stock)} {" ".join(forks)}\n'
        f'    pip install {" ".join(forks)}'
    )


def require_openmmlab() -> None:
    """Raise ImportError with what to do where stock OpenMMLab packages are installed."""
    message = stock_packages_message(installed_distributions())
    if message:
        raise ImportError(message)


def import_error(module: str) -> str | None:
    """One line on why `module` does not import; None if it does."""
    try:
        import_module(module)
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else ''
        if 'torchvision::nms does not exist' in text:
            text = (
                "torchvision's native part does not fit this torch (a CPU-only torch with the registry's torchvision): "
                'install both from the same source'
            )
        return f'{module}: {type(error).__name__}: {text}'
    return None


def main() -> int:
    """Print versions, or what is wrong; returns the exit code."""
    message = stock_packages_message(installed_distributions())
    problems = [message] if message else [error for module in MODULES if (error := import_error(module))]
    if problems:
        print('\n'.join(f'wsbcn_mm: {problem}' for problem in problems), file=sys.stderr)
        return 1
    print('wsbcn_mm: ' + ', '.join(f'{m} {getattr(import_module(m), "__version__", "?")}' for m in MODULES))
    return 0


if __name__ == '__main__':
    sys.exit(main())
