"""Meta-architectures: whole networks."""

from .class_aware_rpn import ClassAwareRPN, ClassAwareRPNHead

__all__ = ["ClassAwareRPN", "ClassAwareRPNHead"]
