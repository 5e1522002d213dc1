"""Long work in a child process: progress, cancel, failure contained."""

from lora_lab.jobs.manager import JobManager
from lora_lab.jobs.model import Job, JobEvent, JobRequest, JobState

__all__ = ["Job", "JobEvent", "JobManager", "JobRequest", "JobState"]
