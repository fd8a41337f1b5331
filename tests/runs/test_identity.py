"""Which configurations are the same run."""

from ftlab.runs.identity import differences, identity, short_hash

BEFORE = {"model": {"method": {"class_path": "m"}}, "data": {"batch_size": 4}}


def test_a_key_that_came_later_makes_no_other_run_where_nothing_is_other() -> None:
    """Of a configuration that was written before there was such a key."""
    data = {**BEFORE["data"], "micro_batch": None, "micro_batch_memory": None}
    now = {"model": {**BEFORE["model"], "compile": False}, "data": data}
    assert differences(identity(BEFORE), identity(now)) == {}
    assert short_hash(now) == short_hash(BEFORE)
    compiled = {**now, "model": {**now["model"], "compile": True}}
    assert differences(identity(BEFORE), identity(compiled)) == {"model.compile": (None, True)}
    assert short_hash(compiled) != short_hash(BEFORE)
