"""From records in files to batches that train the right tokens.

A record's way: `records` (read) -> `templates` (prompt and references) -> `splits` -> `encoding` (ids and labels) ->
`batching` -> `module`, which is what Lightning sees. Knows the network's tokenizer; knows no method.
"""

from ftlab.data.batching import Batch, PromptBatch
from ftlab.data.encoding import Encoder, Example
from ftlab.data.module import FinetuneData
from ftlab.data.templates import Record

__all__ = ["Batch", "Encoder", "Example", "FinetuneData", "PromptBatch", "Record"]
