"""The values that 4-bit codes of the nonlinear formats stand for.

A code is the nearest value, found among the middles between neighbours: IQ4's grow with the code, E2M1's are those of
its magnitudes (codes 0 to 7; 8 is added for a negative value).  Source: ggml's `kvalues_iq4nl`, and the OCP
microscaling specification, whose values are doubled here to be whole numbers as in ggml.
"""

from __future__ import annotations

import numpy as np

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
IQ4_MIDDLES = (IQ4[:-1] + IQ4[1:]) / np.float32(2)

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
E2M1_MIDDLES = (E2M1[:7] + E2M1[1:8]) / np.float32(2)
