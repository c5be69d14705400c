"""One thread for every test: small networks are faster so, and results do not depend on the machine's cores."""

import torch as th

th.set_num_threads(1)
