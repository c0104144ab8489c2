"""``sjd2 batch``: many prompts, one process or a cluster, nothing lost and nothing done twice."""

from .folder import BatchFolder
from .jobs import Job, derived_seed, read_jobs, shard_of
from .on_ray import Actors, run_on_ray
from .run import CHUNK, Tally, run_batch, waiting
from .worker import Worker

__all__ = ["CHUNK", "Actors", "BatchFolder", "Job", "Tally", "Worker", "derived_seed", "read_jobs", "run_batch", "run_on_ray", "shard_of", "waiting"]
