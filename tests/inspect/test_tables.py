from visllama.inspect.tables import bars, histogram


def test_a_histogram_counts_all():
    lengths = [3, 3, 4, 90, 100, 101, 500]
    bins = histogram(lengths, 100)
    assert sum(b.count for b in bins) == len(lengths) and len(bins) <= 13
    assert bins[0].count == 3 and bins[-1] == ("over 100", 2, True)
    assert histogram([7], 100) == [("7", 1, False)] and histogram([], 100) == []
    assert all(len(line) <= 80 for line in bars(bins).splitlines()) and bars(bins).count("cut") == 1
    assert bars([]) == "No sample could be read"
