from .custom import allow_custom_fields, check_datasets, register_custom_datasets
from .mapper import DatasetMapper

__all__ = ["DatasetMapper", "allow_custom_fields", "check_datasets", "register_custom_datasets"]
