"""Optimisers that need more than their own class; every other is named in the YAML by its own."""

from ftlab.modules.optimizers.apollo import APOLLO
from ftlab.modules.optimizers.galore import GaLore
from ftlab.modules.optimizers.hidden import mark_hidden
from ftlab.modules.optimizers.muon import Muon
from ftlab.modules.optimizers.paged import PagedAdamW

__all__ = ["APOLLO", "GaLore", "Muon", "PagedAdamW", "mark_hidden"]
