from completionport.portable.overlapped import Completion as Completion
from completionport.portable.overlapped import OverlappedBase as OverlappedBase
