from visllama.data.scenes.source import ScenesSource


def test_records():
    source = ScenesSource("val", 4, 5)
    assert len(source) == 4 and source.num_pairs == 20
    record = source[2]
    assert record["key"] == "val-000002" and record["image"].size == (48, 48) and len(record["captions"]) == 5
    assert source[2]["captions"] == record["captions"]
