"""What opens over the board. Each window gets a `Desk` and is pushed; it asks and acts by itself.

`request.RequestDetail(desk, id)`, `worker.WorkerDetail(desk, model)`, `logs.Logs(desk, model)` and
`help.Help(desk, lines)` only look. `switch.Switch(desk, model)`, `unload.Unload(desk, model)` and
`cancel.Cancel(desk, requests)` ask first, act once told to, say what came of it on the board, and
return whether they did it.
"""
