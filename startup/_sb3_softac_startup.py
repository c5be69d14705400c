"""Lets RL Zoo find ``--algo softac`` and ``softql``: Python runs this at start-up, through ``sb3_softac.pth``.

RL Zoo loads no plugins before it parses ``--algo``. This finder therefore waits for the import of three RL Zoo modules and
has ``sb3_softac.zoo`` extend each as soon as it is complete. It imports nothing else at start-up, and it never raises. The
environment variable ``SB3_SOFTAC_NO_STARTUP`` (any value but the empty one) switches it off.
"""

import sys

# Module of RL Zoo, and the function of sb3_softac.zoo that extends it.
EXTENSIONS = {
    "rl_zoo3.utils": "extend_utils",
    "rl_zoo3.callbacks": "extend_callbacks",
    "rl_zoo3.exp_manager": "extend_experiment_manager",
}


class Finder:
    """Meta-path finder that steps in for the three modules, and leaves all others to Python."""

    def __init__(self):
        self.asking = set()  # names that this finder is asking the others for

    def find_spec(self, name, path=None, target=None):
        if name not in EXTENSIONS or name in self.asking:
            return None
        self.asking.add(name)
        try:
            return self._spec_with_extension(name, EXTENSIONS[name])
        except Exception as error:
            _complain(error)
            return None
        finally:
            self.asking.discard(name)

    @staticmethod
    def _spec_with_extension(name, extension):
        import importlib.util
        import os

        if os.environ.get("SB3_SOFTAC_NO_STARTUP"):
            return None
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            try:
                getattr(importlib.import_module("sb3_softac.zoo"), extension)(module)
            except Exception as error:
                _complain(error)

        spec.loader.exec_module = exec_module
        return spec


def _complain(error):
    sys.stderr.write(f"sb3-softac could not register itself with RL Zoo: {error!r}\n")


sys.meta_path.insert(0, Finder())
