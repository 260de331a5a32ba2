"""Tasks, by name. A new one is one file and one line of TASKS."""

from __future__ import annotations

from advnas.config import RetrainConfig, SearchConfig
from advnas.tasks.base import Task
from advnas.tasks.image import ImageTask
from advnas.tasks.language import LanguageTask

TASKS: dict[str, type[Task]] = {task.name: task for task in (ImageTask, LanguageTask)}


def task_of(config: SearchConfig | RetrainConfig) -> Task:
    """The task of the settings, with its data loaded; raises as :class:`Task`."""
    return TASKS[config.task](config)


__all__ = ["TASKS", "Task", "task_of"]
