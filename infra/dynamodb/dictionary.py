"""The preset dictionary of the codec: a sample of what turns look like, encoded, most common last.

Frozen: what is stored can be read only with the dictionary that it was written with. A better one
gets a new name and a new version in the codec, beside this one. The sample holds the envelope with
each field in `Response`'s order, our item shapes, and the most common words of English.
"""

from typing import Final


V1: Final = (
    b'{"input":[{"type":"message","role":"developer","content":[{"type":"input_text","text'
    b'":"You are a helpful assistant. Please answer in the language of the question."}],"i'
    b'd":"msg_","status":"completed"},{"role":"user","content":[{"type":"input_image","ima'
    b'ge_url":"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD","detail":"auto"},{"type'
    b'":"input_image","image_url":"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA","detail'
    b'":"auto"},{"type":"input_file","filename":"document.pdf","file_data":"data:applicati'
    b'on/pdf;base64,JVBERi0xLj"},{"type":"input_text","text":"https://www.example.com/"}],'
    b'"type":"message","id":"msg_","status":"completed"},{"type":"function_call_output","c'
    b'all_id":"call_","output":"{\\"error\\":null,\\"result\\":[{\\"id\\":1,\\"name\\":\\"\\",\\"'
    b'value\\":true}],\\"status\\":\\"ok\\"}","id":"fco_","status":"completed"},{"call_id":"cal'
    b'l_","output":"","type":"function_call_output","id":"fco_","status":"completed"},{"id'
    b'":"rs_","type":"reasoning","summary":[{"type":"summary_text","text":""}],"encrypted_'
    b'content":""}],"response":{"id":"resp_","object":"response","created_at":179,"status"'
    b':"incomplete","completed_at":179,"error":null,"incomplete_details":{"reason":"max_ou'
    b'tput_tokens"},"instructions":"You are a helpful assistant. Answer briefly.","output"'
    b':[{"id":"rs_","type":"reasoning","summary":[{"type":"summary_text","text":"**Conside'
    b'ring the question**\\n\\nThe user is asking about "},{"type":"summary_text","text":"I '
    b'need to "}]},{"id":"mcp_","type":"mcp_call","status":"completed","server_label":"age'
    b'nt","name":"search","arguments":"{\\"query\\":\\"\\"}","output":"","error":null},{"id":"'
    b'fc_","type":"function_call","status":"completed","call_id":"call_","name":"get_","ar'
    b'guments":"{\\"location\\":\\"\\",\\"date\\":\\"2026-\\"}"},{"id":"msg_","type":"message","s'
    b'tatus":"completed","role":"assistant","content":[{"type":"refusal","refusal":"I\'m so'
    b'rry, but I can\'t help with that."},{"type":"output_text","text":"Here is","annotatio'
    b'ns":[{"type":"url_citation","start_index":0,"end_index":1,"url":"https://www.example'
    b'.com/","title":""}],"logprobs":[]}]}],"model":"gpt-","previous_response_id":"resp_",'
    b'"tools":[{"type":"function","name":"get_","description":"Returns the ","parameters":'
    b'{"type":"object","properties":{"location":{"type":"string","description":"The "},"li'
    b'mit":{"type":"integer"}},"required":["location"],"additionalProperties":false},"stri'
    b'ct":true}],"tool_choice":"required","parallel_tool_calls":false,"max_tool_calls":10,'
    b'"max_output_tokens":1000,"text":{"format":{"type":"json_schema","name":"","schema":{'
    b'"type":"object","properties":{}},"strict":true},"verbosity":"medium"},"reasoning":{"'
    b'effort":"medium","summary":"auto"},"truncation":"auto","temperature":0.7,"top_p":1.0'
    b',"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"usage":null,"store'
    b'":true,"background":false,"service_tier":"auto","metadata":{"session":""},"safety_id'
    b'entifier":"","prompt_cache_key":"","user":""}}{"input":[],"response":{"id":"resp_","'
    b'object":"response","created_at":179,"status":"failed","completed_at":null,"error":{"'
    b'code":"server_error","message":"The agent failed."},"incomplete_details":null,"instr'
    b'uctions":null,"output":[],"model":"agent","previous_response_id":null,"tools":[],"to'
    b'ol_choice":"auto","parallel_tool_calls":true,"max_tool_calls":null,"max_output_token'
    b's":null,"text":{"format":{"type":"text"}},"reasoning":null,"truncation":"disabled","'
    b'temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_log'
    b'probs":0,"usage":null,"store":true,"background":false,"service_tier":"default","meta'
    b'data":{},"safety_identifier":null,"prompt_cache_key":null,"user":null}}[{"role":"use'
    b'r","content":[{"type":"input_text","text":""}],"type":"message","id":"msg_","status"'
    b':"completed"}]{"input":[{"type":"message","role":"user","content":[{"type":"input_te'
    b'xt","text":"What is the How do I Can you Please "}],"id":"msg_","status":"completed"'
    b'}],"response":{"id":"resp_","object":"response","created_at":179,"status":"completed'
    b'","completed_at":179,"error":null,"incomplete_details":null,"instructions":null,"out'
    b'put":[{"id":"msg_","type":"message","status":"completed","role":"assistant","content'
    b'":[{"type":"output_text","text":" there would not could should which because between'
    b" through before after where when other people these those them then than your questi"
    b"on about example important different however, although first second another example."
    b" It depends on what you want to do. You can use this to make sure that the results a"
    b"re correct. If you need more information, please let me know. For example, there are"
    b" several ways to do this:\\n\\n1. **The first** is to \\n2. **The second** is that \\n3."
    b" **\\n- **\\n\\n```python\\n```\\n\\nI would like to know how this works and what the diff"
    b"erence is between them. Could you please explain it to me? In general, it is one of "
    b"the most common and has been used for many years. The answer is that they are not al"
    b"ways the same, and in this case it will also be with an or from as by at on of the t"
    b'o be. Thank you! ","annotations":[],"logprobs":[]}]}],"model":"agent","previous_resp'
    b'onse_id":"resp_","tools":[],"tool_choice":"auto","parallel_tool_calls":true,"max_too'
    b'l_calls":null,"max_output_tokens":null,"text":{"format":{"type":"text"}},"reasoning"'
    b':null,"truncation":"disabled","temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"'
    b'frequency_penalty":0.0,"top_logprobs":0,"usage":{"input_tokens":100,"input_tokens_de'
    b'tails":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":100,"output_tokens'
    b'_details":{"reasoning_tokens":0},"total_tokens":200},"store":true,"background":false'
    b',"service_tier":"default","metadata":{},"safety_identifier":null,"prompt_cache_key":'
    b'null,"user":null}}'
)
