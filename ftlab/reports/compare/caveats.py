"""What a reader must know beside the numbers: what they do not say, and what was not alike."""

from __future__ import annotations

from collections.abc import Sequence

from ftlab.evaluation.statistics import Sample
from ftlab.reports.compare.groups import Group, JudgedRun
from ftlab.reports.compare.metric import Metric
from ftlab.runs.identity import flat


def caveats(groups: Sequence[Group], metric: Metric, samples: Sequence[Sample]) -> list[str]:
    """A sentence each; none where there is nothing to be careful of."""
    said = []
    single = [group.name for group in groups if group.drawn and len(group.runs) == 1]
    if single:
        one = len(single) == 1
        who = f"{single[0]} has" if one else f"{', '.join(single[:-1])} and {single[-1]} have"
        rest = "its interval and tests are" if one else "their intervals and tests are"
        none = f"no interval and no test of {'it' if one else 'them'} can be given"
        over = f"{rest} over records alone" if samples[0].records else none
        said.append(f"{who} one seed{'' if one else ' each'}: nothing is said of other seeds, and {over}")
    several = any(group.drawn and len(group.runs) > 1 for group in groups)
    alone = ": intervals and tests are over seeds alone" if several else ""
    if metric.of_retention:
        said.append(f"{metric.key} is one number a run{alone}")
    elif not samples[0].records:
        said.append(f"not all runs have kept {metric.key} for each record{alone}")
    elif samples[0].records < 30:
        said.append(f"{samples[0].records} records are few: what is said of others like them is rough below some 30")
    runs = [run for group in groups for run in group.runs]
    for run in runs:
        if changes := {key for change in run.record.get("changes", []) for key in change}:
            said.append(f"{run} was gone on with under another configuration: {', '.join(sorted(changes))}")
    hardware = [run.record.get("hardware", {}) for run in runs]
    if len({str(each.get("gpus") or each.get("cpu")) for each in hardware}) > 1:
        said.append("runs were made on different machines: time, memory and dollars compare loosely")
    if other := _other_versions(runs):
        said.append(f"runs were made by different versions of {', '.join(other)}")
    return said


def _other_versions(runs: Sequence[JudgedRun]) -> list[str]:
    """What was not the same for all of the packages that make results; ftlab's commit and changes among them."""
    made = [flat({"ftlab": run.record.get("ftlab", {})}) | run.record.get("versions", {}) for run in runs]
    names = dict.fromkeys(name for each in made for name in each)
    apart = [name for name in names if len({each.get(name) for each in made}) > 1]
    return list(dict.fromkeys(name.split(".")[0] for name in apart))
