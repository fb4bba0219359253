"""DCASE 2017 task 2 as raw sound: dcase.py with features "waveform", a dataset of its own so that
tables keep them apart.
"""

from noveltylab.data.dcase import read

__all__ = ["read"]
