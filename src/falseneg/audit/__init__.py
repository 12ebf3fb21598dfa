"""What is in a data set, seen by an encoder and without training: duplicates, and what each detector would flag."""

from falseneg.audit.asked import Asked
from falseneg.audit.audit import Audit, audit
from falseneg.audit.duplicates import Duplicates
from falseneg.audit.files import write_files
from falseneg.audit.measure import Measured, measure
from falseneg.audit.suggestion import Suggestion, detectors_of, suggest

__all__ = [
    "Asked",
    "Audit",
    "Duplicates",
    "Measured",
    "Suggestion",
    "audit",
    "detectors_of",
    "measure",
    "suggest",
    "write_files",
]
