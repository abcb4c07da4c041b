from .figure import watched as watched
from .recording import WatchFile as WatchFile
from .recording import read_watch as read_watch
from .verdict import Watch as Watch
