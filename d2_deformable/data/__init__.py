"""A user's own data sets from YAML alone: registration, checks, and the mapper."""

from .custom import allow_custom_fields, check_datasets, register_custom_datasets
from .mapper import DatasetMapper

__all__ = ["DatasetMapper", "allow_custom_fields", "check_datasets", "register_custom_datasets"]
