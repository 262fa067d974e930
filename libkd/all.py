"""The public names of the rooms: `from libkd.all import *`. Papermill and front-end packages load on use, not here."""
from .data import *
from .views import *
from .involution import *
from .teachers import *
from .cache import *
from .students import *
from .losses import *
from .distill import *
from .diagnose import *
from .plots import *
from .widgets import *
from .runs import *
from .evidence import *
from .arms import *
from .report import *
from .sharing import *
