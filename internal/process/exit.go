package process

// Exit codes. They are a contract: scripts branch on them.
const (
	ExitOK      = 0 // done, or drained after a signal
	ExitFailed  = 1 // it failed, and said why
	ExitUsage   = 2 // it was called wrongly; nothing was done
	ExitUndrain = 3 // it did not drain in time; the next start resumes

	ExitPass    = 0 // a verdict: the property holds
	ExitFail    = 1 // a verdict: a counterexample was found
	ExitUnknown = 2 // a verdict: too little was seen to judge
)
