"""The processes that run user code. An executor is sent calls and answers with outcomes; it settles nothing.

`main`: one executor's life · `nursery`: the process that loads the app and forks executors · `invoke`: the
story of one call · `link`: the sockets to the worker · `runners`: how calls overlap inside one executor.
"""
