"""Runs side by side, a row a method: what is quality, what is chance, what it cost.

`find_runs` reads run directories, `into_groups` puts together those that differ in their seeds alone, `compare` refuses
what cannot be compared and makes a `Comparison` of the rest: plain data, of which `tables` makes texts.
"""

from ftlab.reports.compare.comparison import Comparison, Options, compare, unscored
from ftlab.reports.compare.groups import Group, JudgedRun, find_runs, into_groups

__all__ = ["Comparison", "Group", "JudgedRun", "Options", "compare", "find_runs", "into_groups", "unscored"]
