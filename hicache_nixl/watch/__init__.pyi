from .figure import watched as watched
from .process import WatchedProcess as WatchedProcess
from .recording import WatchFile as WatchFile
from .recording import WatchFileError as WatchFileError
from .recording import read_watch as read_watch
from .sample import Sample as Sample
from .verdict import Watch as Watch
