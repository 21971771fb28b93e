"""Register the plug-in when fairseq imports ``tasks/`` of its ``--user-dir``."""

import fairseq_plugins

fairseq_plugins.register()
