"""DCASE 2017 task 2 as raw sound: dcase.py with features "waveform".

A data set of its own, so that tables keep the two apart.
"""

from noveltylab.data.dcase import read

__all__ = ["read"]
