"""A pipeline for tests whose step never returns: `python hang.py SOURCE GROUP`."""

import sys
import threading

from kstream_agg.pipeline import Each, Pipeline, run_pipeline

if __name__ == "__main__":
    source, group = sys.argv[1:]
    never = threading.Event()
    run_pipeline(Pipeline(source, group=group).reduce(Each(lambda _: never.wait(), "hang")))
