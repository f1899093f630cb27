# Runs nvcc on one file, as a script: cmake -DREPORT=file -P nvcc.cmake -- nvcc arguments...
# What nvcc and ptxas say goes to the report (registers, shared memory and spills of each kernel, read by
# scripts/check-ptxas.mjs), and is shown only when the compilation fails.
set(COMMAND_LINE)
set(IN_COMMAND FALSE)
math(EXPR LAST "${CMAKE_ARGC} - 1")
foreach(I RANGE ${LAST})
  if(IN_COMMAND)
    list(APPEND COMMAND_LINE "${CMAKE_ARGV${I}}")
  elseif("${CMAKE_ARGV${I}}" STREQUAL "--")
    set(IN_COMMAND TRUE)
  endif()
endforeach()
execute_process(COMMAND ${COMMAND_LINE} OUTPUT_VARIABLE SAID ERROR_VARIABLE SAID RESULT_VARIABLE STATUS)
if(NOT STATUS EQUAL 0)
  message(FATAL_ERROR "${SAID}")
endif()
file(WRITE ${REPORT} "${SAID}")
