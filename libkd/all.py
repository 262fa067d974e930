"""The public names of the rooms: `from libkd.all import *`. Papermill and front-end packages load on use, not here."""
from . import UnknownName, UserError
from .files import *
from .data import *
from .sets import *
from .identity import *
from .views import *
from .checkpoints import *
from .involution import *
from .teachers import *
from .losses import *
from .cache import *
from .students import *
from .sharing import *
from .distill import *
from .features import *
from .handover import *
from .learner import *
from .datafree import *
from .diagnose import *
from .plots import *
from .widgets import *
from .playground import *
from .runs import *
from .evidence import *
from .price import *
from .arms import *
from .report import *
