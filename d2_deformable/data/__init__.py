from .custom import check_datasets, register_custom_datasets
from .mapper import DatasetMapper

__all__ = ["DatasetMapper", "check_datasets", "register_custom_datasets"]
