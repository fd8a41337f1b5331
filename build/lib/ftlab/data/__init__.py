"""From records in files to batches that train the right tokens.

A record's way: `sources` (read) -> `cleaning` (mended) -> `formats` (what is asked and answered) -> `duplicates`,
`assignment` (splits), `leaks` -> `encoder` (ids and what is learned) -> `store` (on disk) -> `samplers`, `collators`
(batches) -> `module`, which is what Lightning sees. Knows the network's tokenizer; knows no method.
"""

from ftlab.data.collators import Batch, PromptBatch
from ftlab.data.encoder import Encoder
from ftlab.data.module import FinetuneData
from ftlab.data.records import Record

__all__ = ["Batch", "Encoder", "FinetuneData", "PromptBatch", "Record"]
