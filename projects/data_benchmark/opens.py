"""Open a clip 20,000 times in one decoding process and record its memory.

python -m projects.data_benchmark.opens        writes results/opens.csv

Every tenth time, two frames are read as well.
"""

import argparse
import csv
import re
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--opens', type=int, default=20_000, help='number of opens (default: 20000)')
    parser.add_argument('--out', type=Path, default=FOLDER / 'results' / 'opens.csv')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = memory_of_opens(Path(folder), arguments.opens)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open('w', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['opens', 'resident_kb'])
        writer.writerows(rows)
    print(f'{rows[-1][0]} opens: {rows[1][1]} kB after {rows[1][0]}, {rows[-1][1]} kB at the end; {arguments.out}')


def memory_of_opens(folder: Path, opens: int) -> list[tuple[int, int]]:
    """Return (opens, resident memory of the process in kB), at the start and after each twentieth of the opens."""
    from tests.video.clip_files import write_clip
    from wsbcn_mm.video.decoding import process as decoder_process

    decoder_process.FILES_PER_PROCESS = opens + 1
    path = str(write_clip(folder / 'clip.mp4', 30))
    process, rows = decoder_process.DecoderProcess(), []
    for number in range(1, opens + 1):
        process.open('decord', path, 20)
        if number % 10 == 0:
            process.read('decord', path, [0, 29], 20)
        if number == 1 or number % max(opens // 20, 1) == 0:
            status = Path(f'/proc/{process.pid}/status').read_text()
            rows.append((number, int(re.search(r'VmRSS:\s+(\d+) kB', status)[1])))
    process.stop()
    return rows


if __name__ == '__main__':
    main()
