from projects.data_benchmark.opens import memory_of_opens
from wsbcn_mm.video.decoding import process as decoder_process


def test_memory_is_recorded_over_the_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_process, 'FILES_PER_PROCESS', decoder_process.FILES_PER_PROCESS)
    rows = memory_of_opens(tmp_path, 40)
    assert [opens for opens, _ in rows] == [1, *range(2, 41, 2)]
    assert all(resident > 10_000 for _, resident in rows)
