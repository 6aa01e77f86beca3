"""Make masks of class indices: python tools/data/convert_masks.py annotations.xml data/my_folder

SOURCE is a folder of labelme's JSON files, an XML file of CVAT ("CVAT for images 1.1"), a JSON file of COCO, or a
folder of masks in colours or in 0 and 255. Writes masks/ and classes.txt in FOLDER. If FOLDER has images/ already, the
masks are named and placed like the images. Exits with 1 if something is missing or wrong.
"""

import argparse
import sys
from functools import partial
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, metavar='SOURCE', help='annotation file, or folder of files')
    parser.add_argument('root', type=Path, metavar='FOLDER', help='folder of the data set')
    parser.add_argument(
        '--classes', type=Path, metavar='FILE', help='list of classes: their order, and what colours and values mean'
    )
    parser.add_argument(
        '--unlabelled',
        choices=['background', 'ignore'],
        default='background',
        help='what pixels outside all polygons are (default: background)',
    )
    parser.add_argument('--threshold', type=int, metavar='N', help='make two classes of grey masks')
    parser.add_argument('--overwrite', action='store_true', help='replace masks of the same names')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from wsbcn_mm.engine.data.preparation import exit_code_of
    from wsbcn_mm.segmentation.data.convert_masks import convert_masks

    options = dict(unlabelled=args.unlabelled, threshold=args.threshold, overwrite=args.overwrite)
    return exit_code_of(partial(convert_masks, args.source, class_file=args.classes, **options), args.root)


if __name__ == '__main__':
    sys.exit(main())
