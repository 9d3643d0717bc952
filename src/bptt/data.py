"""Text to train on: corpora, tokenizers, token ids in memory-mapped files, batches.

Also synthetic tasks whose answer lies a known number of steps back.
"""

from bptt._src.data.adding import Adding
from bptt._src.data.cache import cache_directory
from bptt._src.data.copying import Copy, CopyStream
from bptt._src.data.corpora import Corpus, open_corpus
from bptt._src.data.entries import PreparedText
from bptt._src.data.prepared import load_prepared, prepare
from bptt._src.data.readers import IGNORED, Batch, Sentences, Streams
from bptt._src.data.statistics import unigram_perplexity
from bptt._src.data.streams import streams
from bptt._src.data.task import Task, TaskBatch
from bptt._src.data.tasks import TASKS, make_task
from bptt._src.data.temporal_order import TemporalOrder
from bptt._src.data.tokenizer import LEVELS, Tokenizer
from bptt._src.data.tokens import READINGS, Tokens, encode_corpus, encode_text

__all__ = [
    "IGNORED",
    "LEVELS",
    "READINGS",
    "TASKS",
    "Adding",
    "Batch",
    "Copy",
    "CopyStream",
    "Corpus",
    "PreparedText",
    "Sentences",
    "Streams",
    "Task",
    "TaskBatch",
    "TemporalOrder",
    "Tokenizer",
    "Tokens",
    "cache_directory",
    "encode_corpus",
    "encode_text",
    "load_prepared",
    "make_task",
    "open_corpus",
    "prepare",
    "streams",
    "unigram_perplexity",
]
