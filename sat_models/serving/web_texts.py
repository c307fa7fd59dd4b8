"""The words of the web page, in English and Chinese, and the questions that it suggests."""

from __future__ import annotations

from sat_models.models.cogagent.agent import agent_prompt

LANGUAGES = {"english": "English", "chinese": "中文"}

WORDS: dict[str, dict[str, str]] = {
    "english": {
        "picture": "Picture",
        "examples": "Examples",
        "template": "Task",
        "question": "Question",
        "placeholder": "Ask about the picture, or without one. Enter sends.",
        "send": "Send",
        "stop": "Stop",
        "clear": "Start over",
        "chat": "Conversation",
        "drawn": "Boxes of the last answer",
        "table": "In pixels",
        "settings": "Settings",
        "version": "Prompt style",
        "temperature": "Temperature (0 takes the likeliest word)",
        "top_p": "Top p",
        "top_k": "Top k (0: all)",
        "tokens": "Longest answer, in tokens",
        "seed": "Seed (empty: a fresh one)",
        "error": "Error",
        "cut": "(cut off: the longest answer is a setting)",
        "part": "What to do",
        "value": "As the model says",
        "agent.plan": "Plan",
        "agent.next_action": "Next action",
        "agent.operation.text": "Operation",
        "agent.operation.action": "Action",
        "agent.operation.value": "With",
        "agent.operation.element_type": "Kind of element",
        "agent.operation.element": "Element",
        "agent.operation.point": "Where, in pixels",
    },
    "chinese": {
        "picture": "图像",
        "examples": "示例",
        "template": "任务",
        "question": "问题",
        "placeholder": "可就图像提问，也可不带图像；按回车发送。",
        "send": "发送",
        "stop": "停止",
        "clear": "重新开始",
        "chat": "对话",
        "drawn": "最近一次回答中的方框",
        "table": "像素坐标",
        "settings": "设置",
        "version": "提示词格式",
        "temperature": "温度（0 表示取最可能的词）",
        "top_p": "Top p",
        "top_k": "Top k（0 表示全部）",
        "tokens": "回答的最大长度（token）",
        "seed": "随机种子（留空则随机）",
        "error": "错误",
        "cut": "（回答因长度限制被截断，可在设置中调整）",
        "part": "操作",
        "value": "模型给出的内容",
        "agent.plan": "计划",
        "agent.next_action": "下一步",
        "agent.operation.text": "操作原文",
        "agent.operation.action": "动作",
        "agent.operation.value": "参数",
        "agent.operation.element_type": "元素类型",
        "agent.operation.element": "元素",
        "agent.operation.point": "位置（像素）",
    },
}

TEMPLATES: dict[str, tuple[str, str]] = {
    "caption": ("Describe · 描述", "Describe this image."),
    "vqa": ("Question · 问答", "How many shapes are there?"),
    "rec": ("Find something · 定位", "Where is the red circle? answer in [[x0,y0,x1,y1]] format."),
    "grounded": ("Describe with boxes · 带框描述", "Describe this image with a box for each object."),
    "reg": (
        "What is in a box · 区域描述",
        "Tell me what you see within the designated area [[086,540,400,760]] in the picture.",
    ),
    "agent": ("Operate a screen · 智能体", agent_prompt("search for CogVLM")),
}
"""By task: its label, and the question that it puts into the box, to be changed."""
