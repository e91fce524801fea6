from completionport.interface.port import Completion as Completion
