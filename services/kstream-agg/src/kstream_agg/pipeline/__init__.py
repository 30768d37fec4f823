"""The consumer engine: map, reduce, commit; `docs/pipeline.md` shows how to write a pipeline."""

from kstream_agg.pipeline.definition import Pipeline
from kstream_agg.pipeline.failures import DeadLetterTopic, ErrorStep, Failure, StopAfter, WriteTo
from kstream_agg.pipeline.mapping import PolledBatch
from kstream_agg.pipeline.records import Record
from kstream_agg.pipeline.run import run_pipeline, serve_pipeline
from kstream_agg.pipeline.settings import EngineSettings, PipelineSettings
from kstream_agg.pipeline.steps import (
    Batch,
    BulkReducer,
    Each,
    Fold,
    PassThrough,
    Reducer,
    Shutdown,
)

__all__ = [
    "Batch",
    "BulkReducer",
    "DeadLetterTopic",
    "Each",
    "EngineSettings",
    "ErrorStep",
    "Failure",
    "Fold",
    "PassThrough",
    "Pipeline",
    "PipelineSettings",
    "PolledBatch",
    "Record",
    "Reducer",
    "Shutdown",
    "StopAfter",
    "WriteTo",
    "run_pipeline",
    "serve_pipeline",
]
